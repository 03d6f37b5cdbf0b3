"""What each attention allows a request, and how its steps are planned."""
