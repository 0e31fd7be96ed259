"""The module that PopTorch's executor lives in, as libraries name it in annotations and checks of types."""

from .execution.executor import PoplarExecutor

__all__ = ["PoplarExecutor"]
