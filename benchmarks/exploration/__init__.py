"""What exploration engines reach that plain dynamics does not: pictures for the docs."""
