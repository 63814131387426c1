// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Command ask sends a request and prints the status and the answer in one line. Its arguments are where to connect
// ("unix" or "tcp4", and the address), the path, and, where wanted, the method (else GET) and a body.
package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"
)

func main() {
	c := http.Client{
		Timeout: 2 * time.Minute,
		Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, os.Args[1], os.Args[2])
		}},
	}
	more := append(os.Args[4:], "", "")
	req, err := http.NewRequest(more[0], "http://127.0.0.1"+os.Args[3], strings.NewReader(more[1]))
	if err != nil {
		fmt.Println(err)
		return
	}
	resp, err := c.Do(req)
	if err != nil {
		fmt.Println(err)
		return
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(resp.StatusCode, strings.ReplaceAll(strings.TrimSpace(string(body)), "\n", " "))
}
