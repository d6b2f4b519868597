"""The Debian package on machines of its own: a clean Debian in a container, with systemd and Postfix running in it."""
