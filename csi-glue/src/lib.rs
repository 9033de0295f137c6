//! Kubernetes glue: turns objects of the API server into node jobs and back. It never touches a block of data.
//!
//! It is the place of the controller and of the changed-block client and holds nothing yet.
