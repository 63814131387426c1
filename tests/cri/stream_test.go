// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	runtime "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// socket is as much of a WebSocket client (RFC 6455) as CRI's streaming server asks for.
type socket struct {
	conn net.Conn
	r    *bufio.Reader
}

// dialSocket opens the address that CRI hands out for exec, attach or port-forward.
func dialSocket(t *testing.T, address, protocol string) *socket {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", u.Host, 10*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(2 * time.Minute))
	fmt.Fprintf(conn,
		"GET %s HTTP/1.1\r\nHost: %s\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
			"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Protocol: %s\r\n\r\n", u.RequestURI(),
		u.Host, protocol)
	s := &socket{conn: conn, r: bufio.NewReader(conn)}
	resp, err := http.ReadResponse(s.r, nil)
	if err != nil || resp.StatusCode != http.StatusSwitchingProtocols {
		t.Fatalf("%s: %v, %v", address, resp, err)
	}
	_ = resp.Body.Close()
	return s
}

// send writes one binary message to a channel. The mask of zeros leaves it as it is.
func (s *socket) send(channel byte, data string) error {
	body := append([]byte{channel}, data...)
	frame := []byte{0x82, 0x80 | 126, 0, 0, 0, 0, 0, 0}
	binary.BigEndian.PutUint16(frame[2:], uint16(len(body)))
	_, err := s.conn.Write(append(frame, body...))
	return err
}

// receive reads messages and adds them to their channels' output, until done says so or the end.
func (s *socket) receive(done func(out [5]bytes.Buffer) bool) (out [5]bytes.Buffer, err error) {
	for !done(out) {
		head := make([]byte, 2)
		if _, err := io.ReadFull(s.r, head); err != nil {
			return out, err
		}
		n := uint64(head[1])
		switch n {
		case 126:
			var v uint16
			err = binary.Read(s.r, binary.BigEndian, &v)
			n = uint64(v)
		case 127:
			err = binary.Read(s.r, binary.BigEndian, &n)
		}
		body := make([]byte, n)
		if err == nil {
			_, err = io.ReadFull(s.r, body)
		}
		if err != nil {
			return out, err
		}
		const opClose = 8
		if head[0]&0xf == opClose {
			return out, io.EOF
		}
		if len(body) > 0 && int(body[0]) < len(out) {
			out[body[0]].Write(body[1:])
		}
	}
	return out, nil
}

func TestAttach(t *testing.T) {
	p := runPod(t)
	id := p.run("cat", "echo started; exec cat", func(c *runtime.ContainerConfig) { c.Stdin = true })
	p.awaitLog("cat", "started")
	r, err := p.node.Runtime.Attach(p.context(), &runtime.AttachRequest{
		ContainerId: id, Stdin: true,
		Stdout: true, Stderr: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	s := dialSocket(t, r.GetUrl(), "v4.channel.k8s.io")
	if err := s.send(0, "through the guest and back\n"); err != nil {
		t.Fatal(err)
	}
	out, err := s.receive(func(out [5]bytes.Buffer) bool { return strings.Contains(out[1].String(), "back\n") })
	if err != nil || out[1].String() != "through the guest and back\n" {
		t.Errorf("attach: %q, %v", out[1].String(), err)
	}
	p.awaitLog("cat", "back")
}

// The services listen on the guest's loopback address only, IPv4 the one and IPv6 the other: containerd enters the
// pod's network namespace on the host and connects to localhost there.
func TestPortForward(t *testing.T) {
	p := runPod(t)
	p.run("server", "busybox httpd -p 127.0.0.1:8080 -h /etc; busybox httpd -p [::1]:9090 -h /etc; echo up; "+forever)
	p.awaitLog("server", "up")
	forward := func(port int32) *socket {
		t.Helper()
		r, err := p.node.Runtime.PortForward(p.context(), &runtime.PortForwardRequest{
			PodSandboxId: p.id,
			Port:         []int32{port},
		})
		if err != nil {
			t.Fatal(err)
		}
		return dialSocket(t, r.GetUrl(), "v4.channel.k8s.io")
	}
	for _, port := range []int32{8080, 9090, 8080} {
		s := forward(port)
		if err := s.send(0, "GET /passwd HTTP/1.0\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		out, err := s.receive(func(out [5]bytes.Buffer) bool {
			return strings.Contains(out[0].String(), "nobody") || out[1].Len() > 2
		})
		// Each channel's first message is the port.
		if !strings.Contains(out[0].String(), "200 OK") || !strings.Contains(out[0].String(), "root:x:0:0") {
			t.Errorf("port %d: %q, error channel %q, %v", port, out[0].String(), out[1].String(), err)
		}
	}
	// Where nobody listens the connection ends at once.
	s := forward(7)
	began := time.Now()
	out, _ := s.receive(func(out [5]bytes.Buffer) bool { return out[1].Len() > 2 })
	if d := time.Since(began); out[0].Len() > 2 || d > 30*time.Second {
		t.Errorf("port 7: %q, %q after %v", out[0].String(), out[1].String(), d)
	}
}
