"""Parts of the source `hf`: splits, columns and tokens of data sets of Hugging Face."""
