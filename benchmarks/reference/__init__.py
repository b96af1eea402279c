"""What the program is measured against in Django: the steps of a capture through the ORM, and django-hordak's transfer."""
