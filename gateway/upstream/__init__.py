"""How do we talk to a pod? HTTP/1.1 connections, their pools, and what is read off an answer in passing."""
