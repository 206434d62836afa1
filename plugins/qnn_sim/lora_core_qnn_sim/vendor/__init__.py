"""The vendor's own libraries, where the user installed them: public C entry points alone, each in its own process."""
