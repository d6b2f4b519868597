"""The DNS: one resolver for everything, the blocklists and their health, SPF."""
