import Config

# Compiled in: the places where a fault test may stop, delay or kill a process.
config :snakepit_shm, fault_points: true
