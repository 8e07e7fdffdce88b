"""Many devices and many processes: meshes, joining, agreement, memory."""
