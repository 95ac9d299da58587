"""Steps as Kubernetes Jobs.

jobs.py           the backend: create or adopt, wait, cancel
creating.py       makes a Job and what it needs beside it, all or nothing
ending.py         how a Job ended, and whether its outcome may be taken
watching.py       follows one Job to its end: its state, its pods' logs
pod_logs.py       a pod's lines, each once, through cut streams
removal.py        deletes a Job, or leaves it to who else follows it
followers.py      who follows a Job
diagnosis.py      what a Job and its pods mean, in words; plain data in, plain data out
connection.py     the requests made, as plain dicts
contact.py        credentials, and what is tried again; the only module that loads the client
refusals.py       what the API server's refusals mean, in words
inference_services.py, standard_services.py, plain_services.py   a run's service, by KServe with
                  Knative, by KServe alone, or by Deployments
interruptible.py  an event loop beside the main thread, which signals interrupt
"""
