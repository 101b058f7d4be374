"""AnyMAL as an MLOps workflow: any mix of image, video, audio, IMU and text in, text out."""

__version__ = "0.1.0"
