// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package harness

import (
	"io"
	"net/http"
	"time"
)

// Get fetches a page from a server in a container.
func Get(url string) (string, error) {
	c := http.Client{Timeout: 30 * time.Second}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	return string(b), err
}
