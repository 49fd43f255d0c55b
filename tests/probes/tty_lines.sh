#!/bin/sh
# Ask for lines and tell them, until one says `quit`.
while printf 'ask> ' && read -r line && [ "$line" != quit ]; do
    echo "got [$line]"
done
