# mongo:7.0 for a cluster that builds its images itself: its stand-in speaks one protocol for all versions.
FROM mongo:8
# It requires no client's certificate, with or without the flag; its shell learns the flag that skips the name.
RUN sed -i 's/^parser.add_argument("--tlsCAFile")$/&; parser.add_argument("--tlsAllowConnectionsWithoutCertificates", action="store_true")/' /usr/local/bin/mongod \
 && sed -i 's/^if options.get("--tlsAllowInvalidCertificates"):$/if options.get("--tlsAllowInvalidHostnames"):\n    settings["tlsAllowInvalidHostnames"] = True\n&/' /usr/local/bin/mongosh \
 && grep -q tlsAllowConnectionsWithoutCertificates /usr/local/bin/mongod && grep -q tlsAllowInvalidHostnames /usr/local/bin/mongosh
LABEL stand-in="mongo:7.0"
