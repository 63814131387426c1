// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

// Package unixhttp makes HTTP/1.1 requests on a Unix socket, with open files beside them (SCM_RIGHTS).
// net/http cannot send files, and it would make the shim a third larger.
//
// It speaks the part of HTTP that the API of a VMM needs: one request on one connection, bodies with a length.
// Everything else is an error, and sizes are bounded before anything is allocated.
package unixhttp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
)

// Bounds of an answer.
const (
	MaxBody    = 256 << 10 // vm.info of a full VM has a fifth; decoded, an answer takes up to some seventy times its bytes
	maxLine    = 1 << 10
	maxHeaders = 32
	maxInterim = 4 // answers "100 Continue" in front of the real one
)

// Status codes with a meaning of their own here.
const (
	statusContinue  = 100
	statusOK        = 200
	statusNoContent = 204
)

// Request is a request. Files travel with its first byte and stay open here.
type Request struct {
	Method string
	Path   string // starts with a slash
	Body   []byte // JSON; empty: none
	Files  []*os.File
}

// Response is an answer.
type Response struct {
	Status int
	Body   []byte
}

// OK reports whether the request succeeded.
func (r Response) OK() bool { return r.Status >= statusOK && r.Status < 300 }

// ErrProtocol is wrapped by the errors of answers that are not in this package's subset of HTTP.
var ErrProtocol = errors.New("not an HTTP answer")

// Do connects to the socket at path, sends a request and reads the answer. ctx bounds all of it.
func Do(ctx context.Context, path string, req Request) (Response, error) {
	if err := context.Cause(ctx); err != nil {
		return Response{}, err
	}
	conn, err := Dial(path)
	if err != nil {
		return Response{}, err
	}
	defer conn.Close() // the answer was read, or it is lost
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	r, err := exchange(conn, req)
	if cause := context.Cause(ctx); err != nil && cause != nil {
		err = cause
	}
	return r, err
}

// Dial connects to the socket at path. A symbolic link is not followed: the directory is the VMM's, which could make it
// one to a socket that is not its own.
func Dial(path string) (*net.UnixConn, error) {
	fd, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	defer unix.Close(fd)
	conn, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: fmt.Sprintf("/proc/self/fd/%d", fd), Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", path, err)
	}
	return conn, nil
}

func exchange(conn *net.UnixConn, req Request) (Response, error) {
	sent := fdpass.Send(conn, encode(req), req.Files...)
	// A server that rejects a request may answer and close before it has read all of it.
	r, err := ReadResponse(bufio.NewReaderSize(conn, maxLine))
	switch {
	case err == nil:
		return r, nil
	case sent != nil:
		return Response{}, fmt.Errorf("send request: %w", sent)
	}
	return Response{}, fmt.Errorf("read answer: %w", err)
}

func encode(req Request) []byte {
	head := req.Method + " " + req.Path + " HTTP/1.1\r\nHost: localhost\r\nAccept: application/json\r\n"
	if len(req.Body) > 0 {
		head += fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(req.Body))
	}
	return append([]byte(head+"\r\n"), req.Body...)
}

// ReadResponse reads one answer. r must buffer at least a line.
func ReadResponse(r *bufio.Reader) (Response, error) {
	for range maxInterim {
		status, err := readStatus(r)
		if err != nil {
			return Response{}, err
		}
		length, err := readHeaders(r)
		if err != nil {
			return Response{}, err
		}
		switch {
		case status == statusContinue && length < 0:
			continue
		case status < statusOK || status == statusNoContent && length > 0:
			return Response{}, protocol("status %d, or a body with it", status)
		case status == statusNoContent:
			return Response{Status: status}, nil
		case length < 0:
			return Response{}, protocol("status %d without Content-Length", status)
		}
		body := make([]byte, length)
		if _, err := io.ReadFull(r, body); err != nil {
			return Response{}, cut(err)
		}
		return Response{Status: status, Body: body}, nil
	}
	return Response{}, protocol("more than %d interim answers", maxInterim)
}

// readStatus reads "HTTP/1.1 NNN reason", where the reason may be missing.
func readStatus(r *bufio.Reader) (int, error) {
	line, err := readLine(r)
	if err != nil {
		return 0, err
	}
	rest, ok := strings.CutPrefix(line, "HTTP/1.1 ")
	if !ok || len(rest) < 3 || len(rest) > 3 && rest[3] != ' ' {
		return 0, protocol("status line %.40q", line)
	}
	status, ok := number(rest[:3], 599)
	if !ok || status < 100 {
		return 0, protocol("status line %.40q", line)
	}
	return status, nil
}

// readHeaders reads up to the empty line and returns Content-Length, -1 if there is none.
func readHeaders(r *bufio.Reader) (length int, err error) {
	length = -1
	for range maxHeaders {
		line, err := readLine(r)
		if err != nil {
			return 0, err
		}
		if line == "" {
			return length, nil
		}
		name, value, ok := strings.Cut(line, ":")
		if !ok || !isToken(name) {
			return 0, protocol("header %.40q", line)
		}
		value = strings.Trim(value, " \t")
		switch strings.ToLower(name) {
		case "content-length":
			if length >= 0 {
				return 0, protocol("two lengths")
			}
			if length, ok = number(value, MaxBody); !ok {
				return 0, protocol("length %.40q, at most %d is taken", value, MaxBody)
			}
		case "transfer-encoding":
			return 0, protocol("Transfer-Encoding %.40q is not understood", value)
		}
	}
	return 0, protocol("more than %d headers", maxHeaders)
}

// readLine reads a line that ends with CR LF and returns it without them.
func readLine(r *bufio.Reader) (string, error) {
	b, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) || len(b) > maxLine {
		return "", protocol("a line of more than %d bytes", maxLine)
	}
	if err != nil {
		return "", cut(err)
	}
	line, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok || strings.ContainsFunc(line, isControl) {
		return "", protocol("line %.40q", b)
	}
	return line, nil
}

func isControl(c rune) bool { return c < ' ' && c != '\t' || c == 0x7f }

// number reads a decimal number without sign or leading zeros.
func number(s string, most int) (int, bool) {
	if s == "" || len(s) > 1 && s[0] == '0' {
		return 0, false
	}
	n := 0
	for _, c := range []byte(s) {
		if c < '0' || c > '9' {
			return 0, false
		}
		if n = 10*n + int(c-'0'); n > most {
			return 0, false
		}
	}
	return n, true
}

// isToken checks a header's name (RFC 9110, section 5.6.2).
func isToken(s string) bool {
	for _, c := range []byte(s) {
		if c <= ' ' || c >= 0x7f || strings.IndexByte("\"(),/:;<=>?@[\\]{}", c) >= 0 {
			return false
		}
	}
	return s != ""
}

func protocol(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrProtocol, fmt.Sprintf(format, args...))
}

// cut is the error of an answer that ended early.
func cut(err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return fmt.Errorf("the connection was closed in the middle of the answer: %w", io.ErrUnexpectedEOF)
	}
	return err
}
