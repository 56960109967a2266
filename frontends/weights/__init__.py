"""The way of stored weights onto a GPU: blocks are taken apart and numbers are quantized there. The one place of this room that knows the
runtime."""
