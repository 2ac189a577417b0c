"""Programs that stand in for the cloud's, over a folder that holds a small cloud."""
