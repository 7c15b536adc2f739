# rabbitmq:4.2-management for a cluster that builds its images itself: the 4.x that its distribution has.
FROM rabbitmq:4-management
LABEL stand-in="rabbitmq:4.2-management"
