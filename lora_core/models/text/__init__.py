"""What a directory's files say about text: tokenizer, special tokens, chat templates, as transformers reads them."""
