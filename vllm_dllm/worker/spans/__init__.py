"""What a step forwards, laid out once; one file per regime of attention."""
