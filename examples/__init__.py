"""Small applications that replace the model and the data by configuration alone."""
