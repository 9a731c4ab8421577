"""What the pages of the explorer show: functions from the values of the dials to a picture, a text and numbers."""

from figures.explorer.scenes.scene import Scene, panel

__all__ = ["Scene", "panel"]
