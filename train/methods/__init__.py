"""The methods that can be trained and compared: one file and one registration each."""
