"""One Kubeflow container component per stage; each only says which ports the stage has and which image runs it."""
