"""The reference's way to serve, written anew: a FastAPI endpoint round a transformers pipeline.

    python benchmarks/serving_reference.py MODEL_FOLDER READY_FILE threads|serial

`threads` answers each request in a thread of its own, as a plain function does under
FastAPI; `serial` one after the other, as a coroutine that never awaits. The reference
had both at different times.
"""

import json
import os
import socket
import sys
from pathlib import Path
from typing import Any

import torch
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline


class Completion(BaseModel):
    prompt: str
    max_new_tokens: int = 10
    do_sample: bool = True


def application(folder: str, way: str) -> FastAPI:
    pipe = pipeline("text-generation", model=folder, dtype=torch.float32, device="cpu")
    app = FastAPI()

    def answer(body: Completion) -> Any:
        return pipe(body.prompt, max_new_tokens=body.max_new_tokens, do_sample=body.do_sample)

    async def answer_serially(body: Completion) -> Any:
        return answer(body)

    app.post("/completion")(answer if way == "threads" else answer_serially)
    return app


def main() -> None:
    folder, ready_file, way = sys.argv[1:]
    app = application(folder, way)
    listening = socket.create_server(("127.0.0.1", 0))
    url = f"http://127.0.0.1:{listening.getsockname()[1]}"
    Path(ready_file).write_text(json.dumps({"url": url, "pid": os.getpid()}))
    uvicorn.Server(uvicorn.Config(app, log_level="warning")).run(sockets=[listening])


if __name__ == "__main__":
    main()
