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

// Page is a text that is served beside the metrics.
type Page struct {
	Path string // "/name"
	Text func(context.Context) (string, error)
}

// Serve answers GET /metrics, and GET of the pages, on l, one reader after the other, until ctx ends. It speaks as much
// HTTP as curl and scrapers need; a real server would double the shim. A page's error is the text of its answer. It
// closes l.
func Serve(ctx context.Context, l net.Listener, collect func(context.Context) string, pages ...Page) error {
	all := append([]Page{{"/metrics", func(ctx context.Context) (string, error) { return collect(ctx), nil }}}, pages...)
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
		answer(ctx, conn, all)
	}
}

// answer serves one reader. Its mistakes and its leaving concern nobody else.
func answer(ctx context.Context, conn net.Conn, pages []Page) {
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
	status, body := "404 Not Found", "GET "+pages[0].Path+"\n"
	for _, p := range pages {
		if f := strings.Fields(first); len(f) >= 2 && f[0] == "GET" && f[1] == p.Path {
			status = "200 OK"
			if body, err = p.Text(ctx); err != nil {
				status, body = "503 Service Unavailable", err.Error()
			}
		}
	}
	_, _ = io.WriteString(conn,
		"HTTP/1.0 "+status+"\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8\r\nContent-Length: "+
			strconv.Itoa(len(body))+"\r\nConnection: close\r\n\r\n"+body)
}

// Get reads the metrics that Serve offers at a unix socket.
func Get(ctx context.Context, socket string) (string, error) {
	text, err := GetPage(ctx, socket, "/metrics")
	if err != nil {
		return "", fmt.Errorf("read metrics: %w", err)
	}
	return text, nil
}

// GetPage reads a page that Serve offers at a unix socket. An error of the page's Text is returned as an error.
func GetPage(ctx context.Context, socket, path string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := io.WriteString(conn, "GET "+path+" HTTP/1.0\r\n\r\n"); err != nil {
		return "", fmt.Errorf("%s: %w", socket, err)
	}
	data, err := io.ReadAll(io.LimitReader(conn, maxBody))
	if err != nil {
		return "", fmt.Errorf("%s: %w", socket, err)
	}
	head, body, ok := strings.Cut(string(data), "\r\n\r\n")
	switch {
	case ok && strings.HasPrefix(head, "HTTP/1.0 503 "):
		return "", errors.New(body)
	case !ok || !strings.HasPrefix(head, "HTTP/1.0 200 "):
		return "", errors.New(socket + " answers " + strconv.Quote(head))
	}
	return body, nil
}
