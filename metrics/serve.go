// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package metrics

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

const (
	serveTimeout = 15 * time.Second // for one reader, all of it
	maxHead      = 8 << 10
	maxBody      = 16 << 20 // of an answer that is read
)

// Serve answers GET /metrics on l, one reader after the other, until ctx ends. It speaks as much HTTP
// as curl and scrapers need; a real server would double the shim. It closes l.
func Serve(ctx context.Context, l net.Listener, collect func(context.Context) string) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	for {
		conn, err := l.Accept()
		if err != nil {
			_ = l.Close() // may be closed already
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("accept a reader of metrics: %w", err)
		}
		answer(ctx, conn, collect)
	}
}

// answer serves one reader. Its mistakes and its leaving concern nobody else.
func answer(ctx context.Context, conn net.Conn, collect func(context.Context) string) {
	ctx, cancel := context.WithTimeout(ctx, serveTimeout)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	defer conn.Close()
	r := bufio.NewReaderSize(io.LimitReader(conn, maxHead), 512)
	first, err := r.ReadString('\n')
	for line := first; err == nil && strings.TrimSpace(line) != ""; {
		line, err = r.ReadString('\n')
	}
	if err != nil {
		return
	}
	status, body := "200 OK", ""
	if f := strings.Fields(first); len(f) < 2 || f[0] != "GET" || f[1] != "/metrics" {
		status, body = "404 Not Found", "GET /metrics\n"
	} else {
		body = collect(ctx)
	}
	_, _ = io.WriteString(conn,
		"HTTP/1.0 "+status+"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: "+
			strconv.Itoa(len(body))+"\r\nConnection: close\r\n\r\n"+body)
}

// Get reads the metrics that Serve offers at a unix socket.
func Get(ctx context.Context, socket string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", fmt.Errorf("read metrics: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, "GET /metrics HTTP/1.0\r\n\r\n"); err != nil {
		return "", fmt.Errorf("read metrics of %s: %w", socket, err)
	}
	data, err := io.ReadAll(io.LimitReader(conn, maxBody))
	if err != nil {
		return "", fmt.Errorf("read metrics of %s: %w", socket, err)
	}
	head, body, ok := strings.Cut(string(data), "\r\n\r\n")
	if !ok || !strings.HasPrefix(head, "HTTP/1.0 200 ") {
		return "", errors.New("read metrics of " + socket + ": it answers " + strconv.Quote(head))
	}
	return body, nil
}
