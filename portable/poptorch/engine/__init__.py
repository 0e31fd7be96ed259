"""Layer 2: the engine. Traces a program once and runs it: stages, gradients, weight updates."""
