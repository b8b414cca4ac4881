"""A model of real pretrained parts: assembled, trained a little, measured. Not shipped."""
