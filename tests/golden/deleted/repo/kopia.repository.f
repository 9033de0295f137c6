{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "O/viHPGLywE9Gxt235QSIo9I0KESfvqZb/i3CE4iNZE=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "iZrVohb0y6zeYnDBU4dA+KX9MmhHn2aNy8sq4zPWIDBDrj/XVOTJGKvHNumPGyHfNg5hhw+7LQB/7vsykpqNUn4RQwzcTEWM+Xxqek17ZP/Qc0GqwFzsrCh+IlZEmzw81/cJJYI1WbA/3zLK3yy4pyqBB3UM3MOCzIDsYuhVYclXNT0vu9qp2CKqwEMap+dFOc8RYxahiMuFyNC4js9z2QbBbQV0OgC84jUBvQmTM3c6DVuHJA++O3m8fP+cqLxUYhG24BQeL8E6K6gkK2MjL4GoWR+zSvhsK4mMtMjYlQqTcBJRdX7uBOYhidUW8mZ49K2iiyaqOWikxJKgkZn2COR44nZ7WAq2OJMnv61KJWJvVge1MnZfuyEq14JGC+lUp16EKbL4NMPrcECKy5gXGVqWDm9dXTa2IR2nVmQzXLRda6SIlj8DR7QeFhf52LIt0oECUJIuigrHfFtVEjMwAqLRZLYCgy92YKJ3c5Q2bDNYybrIFQGY8i4MXf+1V9jLbXgbwHCgoKn+EixZvJabwTCm/wnsWubA2M7kUqfIXPagslV6txI6mIy+T/bjKTBGBEcfrGWZrbpLHnvccN9xIDzghpOqMPzhSNNOqPUv8A3zk1M7DTNIrUdf91oUEK9rkIuneHxGbO0hoINEoTVdIQuIfTyAHmjLxfGGIgNl2CIaRpMzGPb8TbcDF8GMWm/afu4C6yg1jrU6rFgWp+xtK+9KeTAHh11A5YC/jjvXuMHUu+vF/Z6ma8batDImUv3mhg3gPvlpVZl7xZcyRT7L3kFlvRXNkq6/OOIalNu/uA=="
}
