"""What Postfix has logged: files and journal opened, lines turned into the mails that accounts have sent."""
