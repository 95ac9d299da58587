"""Variables by which a tracker is asked for, as its own users know them."""

MLFLOW = ("MLFLOW_TRACKING_URI",)
TRACKIO = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DIR")
ALL = (*MLFLOW, *TRACKIO)
