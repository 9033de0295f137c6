{
  "tool": "https://github.com/kopia/kopia",
  "buildVersion": "0.23.1",
  "buildInfo": "-(unknown_revision)",
  "uniqueID": "hE2FT5FP+W8eh4nb8U68FBIYGcmy4fDks/MHFTVBmos=",
  "keyAlgo": "scrypt-65536-8-1",
  "encryption": "AES256_GCM",
  "encryptedBlockFormat": "koByuaZIDanqlQxKxx9WY/eLGb1tUdWBpyg+vJ5xkeyyVYwLaC/fZFHFKXbFn5c1sraAgYFoCBZTbiKkpc/xNZI4Dip3nCp6Q8pEa+n4pL7O9Bw3tmjaXJxyfjNOF2jUMcq1wlRe17ScvysQsZgSzlGyhTOc6OIBhqr6XUugI0N2bpgeLEvbFWXKIIuEKI/4Ld9XNPcCoEyzcp36wEGYr8SQRGBHn5Ds2khsdzJwm9cd4Pzafb/moezfR1bkeBIboneb2TINs+E0wS04QJA6Lxa6YOnMQEeMebXieYQK3rHQWecOzc3RlDvmaJ+T+m5DOYcgKlCYVuTGg2cbQO4j/3Vsv9cCi6XR638q+tQ4D1w4Ku+NRn+RqrLzGvbyNFqwH3NfT+IsTWJYx+9JkgmS+IUVY5YGo6p3nc+dh2KxG75PFmO1eAHUIQ2G0WTt09q8R9ikFchMz+cYmsQTk10qZws+DnYW8q5rZTmizpY7/XWzVLPWtEk8SEh7yMsLo0jSXNDeddRfLyqqMpgwyOqoRbr1swvZM+/7labaAI3xCFpTVn5tDiWbMiIjy32CrFWtk/xlYC/tmOxmNUXvrfWU9ac2uf0oYTcntqFu0AW9iO5V4lqMsGfzwV2pbQXxyv4jxu/e7jMnTsRRvWOqoIm5InIplx/CkqjTNAfZOl2mPckYMkaaSZJ04p8C+DnZ+lDK7I4szRQM4Sw0gR2yFfU7AhgVrcM3w2X5zH0O"
}
