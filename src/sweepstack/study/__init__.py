"""Reading studies: never imports the engine or the sweeper."""
