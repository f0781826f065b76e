"""What is in the messages: sessions, how long they are, what is cut from them and told."""
