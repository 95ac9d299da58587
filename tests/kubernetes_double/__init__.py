"""A Kubernetes cluster in one process, for tests: see cluster.py.

    cluster.py         start and stop it, its kubeconfig, its faults
    server.py          the API over HTTP: verbs, discovery, Status bodies
    streams.py         watches, and logs as they come
    api_objects.py     defaults, selectors, patches, Status bodies
    admission.py       what a request must satisfy: names, fields, immutability, Pod Security
    permissions.py     what service accounts may do
    store.py           objects, resource versions, history
    job_controller.py  Jobs make Pods and count them
    job_rules.py       failure policies, Pods of a template
    deletion.py        graces, propagation, finalizers
    kubelet.py         the scheduler and the node
    serving.py         InferenceServices and Deployments, their servers and addresses
    kserve_schema.py   KServe's own schema
    container.py       a container as a real local process
    pod_status.py      a Pod's status at each station
    faults.py          what goes wrong, by script

What it answers is held to recordings of Kubernetes 1.36 in tests/kubernetes/recordings.
"""
