"""What the services cost on a real broker and a real object store, figure by figure."""
