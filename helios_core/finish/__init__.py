"""Finishing: a video made larger, smoother and ready to deliver, piece by piece, in constant memory."""
