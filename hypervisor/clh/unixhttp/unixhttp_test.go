// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package unixhttp

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Answers of Cloud Hypervisor's server: no reason in the status line, no length with 204.
const (
	noContent = "HTTP/1.1 204 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n\r\n"
	withBody  = "HTTP/1.1 200 \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\nContent-Type: " +
		"application/json\r\nContent-Length: 2\r\n\r\n{}"
)

func TestReadResponse(t *testing.T) {
	long := strings.Repeat("a", 2*maxLine)
	for _, tt := range []struct {
		name, in string
		status   int
		body     string
		protocol bool // refused for what it says, not for what is missing
	}{
		{name: "no content", in: noContent, status: 204},
		{name: "a body", in: withBody, status: 200, body: "{}"},
		{name: "an error without a body", in: "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", status: 404},
		{name: "an interim answer first", in: "HTTP/1.1 100 \r\n\r\n" + withBody, status: 200, body: "{}"},
		{name: "lower-case header", in: "HTTP/1.1 200 OK\r\ncontent-length:1\r\n\r\nx", status: 200, body: "x"},
		{name: "nothing", in: ""},
		{name: "switching protocols", in: "HTTP/1.1 101 \r\n\r\n" + withBody, protocol: true},
		{name: "a control character", in: "HTTP/1.1 204 \r\nA: \x1d\r\n\r\n", protocol: true},
		{name: "half a status line", in: "HTTP/1.1 20"},
		{name: "half the headers", in: "HTTP/1.1 200 \r\nContent-Le"},
		{name: "half a body", in: withBody[:len(withBody)-1]},
		{name: "another protocol", in: "SSH-2.0-OpenSSH\r\n\r\n", protocol: true},
		{name: "another version", in: "HTTP/1.0 200 \r\n\r\n", protocol: true},
		{name: "a status of letters", in: "HTTP/1.1 abc \r\n\r\n", protocol: true},
		{name: "a status of two digits", in: "HTTP/1.1 20\r\n\r\n", protocol: true},
		{name: "a status too high", in: "HTTP/1.1 600 \r\n\r\n", protocol: true},
		{name: "a bare newline", in: "HTTP/1.1 204 \n\n", protocol: true},
		{name: "a long line", in: "HTTP/1.1 204 " + long, protocol: true},
		{name: "a header without a colon", in: "HTTP/1.1 204 \r\nServer\r\n\r\n", protocol: true},
		{name: "a folded header", in: "HTTP/1.1 204 \r\nServer: a\r\n b: c\r\n\r\n", protocol: true},
		{name: "many headers", in: "HTTP/1.1 204 \r\n" + strings.Repeat("A: b\r\n", maxHeaders+1) + "\r\n", protocol: true},
		{name: "two lengths", in: "HTTP/1.1 200 \r\nContent-Length: 1\r\nContent-Length: 1\r\n\r\nx", protocol: true},
		{name: "a negative length", in: "HTTP/1.1 200 \r\nContent-Length: -1\r\n\r\nx", protocol: true},
		{name: "a length with a sign", in: "HTTP/1.1 200 \r\nContent-Length: +1\r\n\r\nx", protocol: true},
		{
			name: "a length above the bound", in: fmt.Sprintf("HTTP/1.1 200 \r\nContent-Length: %d\r\n\r\n", MaxBody+1),
			protocol: true,
		},
		{
			name: "a length beyond integers", in: "HTTP/1.1 200 \r\nContent-Length: 99999999999999999999\r\n\r\n",
			protocol: true,
		},
		{name: "chunks", in: "HTTP/1.1 200 \r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", protocol: true},
		{name: "no length", in: "HTTP/1.1 200 \r\n\r\n{}", protocol: true},
		{name: "no content, with some", in: "HTTP/1.1 204 \r\nContent-Length: 1\r\n\r\nx", protocol: true},
		{name: "interim answers without end", in: strings.Repeat("HTTP/1.1 100 \r\n\r\n", 10), protocol: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := ReadResponse(bufio.NewReaderSize(strings.NewReader(tt.in), maxLine))
			if tt.status == 0 {
				if err == nil || errors.Is(err, ErrProtocol) != tt.protocol || errors.Is(err, io.ErrUnexpectedEOF) == tt.protocol {
					t.Errorf("ReadResponse() = %v, %v, want an error (protocol: %v)", got, err, tt.protocol)
				}
				return
			}
			if err != nil || got.Status != tt.status || string(got.Body) != tt.body {
				t.Errorf("ReadResponse() = %d %q, %v, want %d %q", got.Status, got.Body, err, tt.status, tt.body)
			}
		})
	}
}

// serve answers one connection with fn and returns the socket's path.
func serve(t *testing.T, fn func(*net.UnixConn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c, err := l.AcceptUnix()
		if err != nil {
			return
		}
		defer c.Close()
		fn(c)
	}()
	t.Cleanup(func() {
		l.Close()
		<-done
	})
	return path
}

func TestRequestArrivesWithItsFiles(t *testing.T) {
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	var got *http.Request
	var body []byte
	var wrote error
	path := serve(t, func(c *net.UnixConn) {
		buf := make([]byte, 4096)
		n, files, err := fdpass.Recv(c, buf, 4)
		if err != nil {
			t.Error(err)
			return
		}
		if len(files) == 1 {
			_, wrote = files[0].WriteString("seen")
		} else {
			wrote = fmt.Errorf("%d files", len(files))
		}
		for _, f := range files {
			f.Close()
		}
		if got, err = http.ReadRequest(bufio.NewReader(bytes.NewReader(buf[:n]))); err == nil {
			body, err = io.ReadAll(got.Body)
		}
		if err != nil {
			t.Error(err)
		}
		_, _ = io.WriteString(c, withBody)
	})
	r, err := Do(t.Context(), path, Request{
		Method: "PUT", Path: "/api/v1/vm.add-net", Body: []byte(`{"a":1}`),
		Files: []*os.File{f},
	})
	if err != nil || !r.OK() || string(r.Body) != "{}" {
		t.Fatalf("Do() = %v, %v", r, err)
	}
	if got.Method != "PUT" || got.URL.Path != "/api/v1/vm.add-net" ||
		got.Header.Get("Content-Type") != "application/json" || string(body) != `{"a":1}` || wrote != nil {
		t.Errorf("the server saw %v with %q, %v", got, body, wrote)
	}
	if b, err := os.ReadFile(f.Name()); err != nil || string(b) != "seen" {
		t.Errorf("the file holds %q, %v", b, err)
	}
}

func TestContextEndsAnExchange(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no patience")
	release := make(chan struct{})
	path := serve(t, func(*net.UnixConn) {
		cancel(why)
		<-release
	})
	_, err := Do(ctx, path, Request{Method: "GET", Path: "/"})
	close(release)
	if !errors.Is(err, why) {
		t.Errorf("Do() = %v, want %v", err, why)
	}
	if _, err := Do(ctx, path, Request{Method: "GET", Path: "/"}); !errors.Is(err, why) {
		t.Errorf("Do() with an ended context = %v, want %v", err, why)
	}
}

func TestFailuresOfTheConnection(t *testing.T) {
	if _, err := Do(t.Context(), "/nonexistent/socket", Request{Method: "GET", Path: "/"}); !errors.Is(err,
		os.ErrNotExist) {
		t.Errorf("Do() without a socket = %v", err)
	}
	path := serve(t, func(c *net.UnixConn) { _, _ = io.WriteString(c, withBody[:40]) })
	_, err := Do(t.Context(), path, Request{Method: "GET", Path: "/"})
	if err == nil || errors.Is(err, ErrProtocol) {
		t.Errorf("Do() with half an answer = %v, want one that tells that the connection ended", err)
	}
}

func TestALinkToAnotherSocketIsNotFollowed(t *testing.T) {
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	conn, err := Dial(l.Addr().String())
	if err != nil {
		t.Fatalf("Dial() = %v", err)
	}
	conn.Close()
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(l.Addr().String(), link); err != nil {
		t.Fatal(err)
	}
	if conn, err := Dial(link); err == nil || !strings.Contains(err.Error(), "connect to "+link) {
		t.Errorf("Dial() of a link = %v, %v", conn, err)
	}
}

func FuzzReadResponse(f *testing.F) {
	f.Add([]byte(noContent))
	f.Add([]byte("HTTP/1.1 100 \r\n\r\n" + withBody))
	f.Add([]byte("HTTP/1.1 500 \r\nContent-Length: 4\r\n\r\n[\"\"]"))
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		r, err := ReadResponse(bufio.NewReaderSize(bytes.NewReader(b), maxLine))
		if err != nil {
			return
		}
		if r.Status < 200 || r.Status > 599 || len(r.Body) > len(b) {
			t.Fatalf("status %d, body of %d bytes from %d", r.Status, len(r.Body), len(b))
		}
		// The standard library accepts each accepted answer too, with the same meaning.
		for in := bufio.NewReader(bytes.NewReader(b)); ; {
			std, err := http.ReadResponse(in, nil)
			if err != nil {
				t.Fatalf("%q: net/http: %v", b, err)
			}
			body, err := io.ReadAll(std.Body)
			if std.StatusCode == http.StatusContinue {
				continue
			}
			if err != nil || std.StatusCode != r.Status || std.StatusCode != 304 && !bytes.Equal(body, r.Body) {
				t.Fatalf("%q: net/http reads %d %q, %v; here %d %q", b, std.StatusCode, body, err, r.Status, r.Body)
			}
			return
		}
	})
}
