import os

# The workers fill the cores: threads that wait for each other there make tiny models crawl. Read
# when torch is loaded, here and by every process that a test starts.
os.environ.setdefault("OMP_NUM_THREADS", "1")
