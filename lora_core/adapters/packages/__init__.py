"""Adapter packages: one file for each adapter, to be shipped by itself and linked where the bundle is.

A package is a safetensors file (https://huggingface.co/docs/safetensors) whose tensors are the adapter's matrices in
the types that they were trained in, called `MODULE/KIND/PART`, and whose metadata says what it is and what it goes
with. `docs/reference/package-format.md` describes it field by field.
"""
