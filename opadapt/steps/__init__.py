"""The steps of the story: each joins the device, the trainer and the journal for one part of adapt.py."""
