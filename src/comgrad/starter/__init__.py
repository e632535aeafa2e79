"""The starter zoo: real adapters under open licences, and the data of three tasks that no adapter of the zoo saw."""
