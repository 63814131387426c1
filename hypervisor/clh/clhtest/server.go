// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package clhtest

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/coco-shim/coco/internal/fdpass"
)

const (
	apiRoot  = "/api/v1/"
	maxFiles = 253
	// closingTime is how long the API's thread outlives the one that carries out its calls.
	closingTime = 50 * time.Millisecond
)

// server is the HTTP side. Like the real one it carries out one call at a time.
type server struct {
	config  Config
	journal *os.File
	checks  checker

	mu  sync.Mutex
	vmm *vmm // guarded by mu
}

// filesReader reads a connection and collects the descriptors that come along.
type filesReader struct {
	conn  *net.UnixConn
	files []*os.File
}

// Read takes as little at a time as the real server does.
func (r *filesReader) Read(p []byte) (int, error) {
	n, files, err := fdpass.Recv(r.conn, p[:min(len(p), 1024)], maxFiles)
	r.files = append(r.files, files...)
	if err == nil && n == 0 {
		err = io.EOF
	}
	return n, err
}

// answer is what a call returns.
type answer struct {
	status int
	body   any
}

// serve answers the requests of one connection.
func (s *server) serve(conn *net.UnixConn) {
	defer conn.Close()
	in := &filesReader{conn: conn}
	r := bufio.NewReader(in)
	for {
		req, err := http.ReadRequest(r)
		if err != nil {
			return
		}
		body, err := io.ReadAll(req.Body)
		if err != nil {
			return
		}
		files := in.files
		in.files = nil
		if !s.one(conn, req, body, files) {
			return
		}
	}
}

// one answers a request and tells whether the connection goes on.
func (s *server) one(conn io.Writer, req *http.Request, body []byte, files []*os.File) bool {
	call, ok := strings.CutPrefix(req.URL.Path, apiRoot)
	if !ok {
		call = req.URL.Path
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	entry := Request{Call: call, Body: body}
	for _, f := range files {
		id, err := fileID(f)
		if err != nil {
			fatal(err)
		}
		entry.Files = append(entry.Files, id)
	}
	if !s.config.AfterDone && s.fault(conn, call, req, entry) {
		return false
	}
	a := s.vmm.handle(req.Method, call, body, files)
	entry.Opened, s.vmm.opened = s.vmm.opened, nil
	if s.config.AfterDone && s.fault(conn, call, req, entry) {
		return false
	}
	text := encode(a.body)
	entry.Status = a.status
	s.note(req, entry, text)
	_, err := fmt.Fprint(conn, message(a.status, text))
	if call == "vmm.shutdown" && a.status == http.StatusOK && !s.config.StayOnQuit {
		s.vmm.quit()
	}
	return err == nil
}

// fault does what the configuration wants to happen upon a call, and tells whether it did.
func (s *server) fault(conn io.Writer, call string, req *http.Request, entry Request) bool {
	c := s.config
	switch call {
	case c.CrashOn, c.ExitOn, c.HangOn, c.HalfOn, c.GarbageOn, c.ClosingOn:
		s.note(req, entry, nil)
	}
	switch call {
	case c.CrashOn:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL) // cannot fail
		select {}
	case c.ExitOn:
		fatal(errors.New("thread 'vmm' panicked"))
	case c.HangOn:
		s.mu.Unlock()
		if _, err := io.Copy(io.Discard, conn.(io.Reader)); err != nil { // until the client gives up
			fmt.Fprintln(os.Stderr, err)
		}
		s.mu.Lock()
		return true
	case c.HalfOn:
		m := message(http.StatusOK, []byte(`{"id":"half"}`))
		_, _ = io.WriteString(conn, m[:len(m)-7]) // a fake
		return true
	case c.GarbageOn:
		_, _ = io.WriteString(conn, "SSH-2.0-OpenSSH_9.2\r\n\r\n") // a fake
		return true
	case c.ClosingOn:
		body := encode([]string{"Error from API", "Failed to receive the answer", "receiving on a closed channel"})
		_, _ = io.WriteString(conn, message(http.StatusInternalServerError, body)) // a fake
		time.AfterFunc(closingTime, s.vmm.processorFails)
		return true
	case c.ErrorOn:
		entry.Status = c.ErrorStatus
		s.note(req, entry, nil)
		_, _ = io.WriteString(conn, message(c.ErrorStatus, []byte(c.ErrorBody))) // a fake
		return true
	}
	return false
}

// note writes a request down, with what the descriptions of the API say about it.
func (s *server) note(req *http.Request, e Request, text []byte) {
	e.Problems = s.checks.check(req, e.Body, e.Status, text)
	b, err := json.Marshal(e)
	if err == nil {
		_, err = s.journal.Write(append(b, '\n'))
	}
	if err != nil {
		fatal(err)
	}
}

func encode(body any) []byte {
	if body == nil {
		return nil
	}
	b, err := json.Marshal(body)
	if err != nil {
		fatal(err)
	}
	return b
}

// message is an answer as micro_http writes it: without a reason, and without a length for 204.
func message(status int, body []byte) string {
	head := fmt.Sprintf("HTTP/1.1 %d \r\nServer: Cloud Hypervisor API\r\nConnection: keep-alive\r\n", status)
	if status != http.StatusNoContent {
		head += fmt.Sprintf("Content-Type: application/json\r\nContent-Length: %d\r\n", len(body))
	}
	return head + "\r\n" + string(body)
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "cloud-hypervisor (fake):", err)
	os.Exit(1)
}
