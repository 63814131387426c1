// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package resolver

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/internal/line"
	"github.com/coco-shim/coco/internal/lookup"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const patient = 20 * time.Second

// query is a question for a name; the id is its first two bytes.
func query(id byte) []byte {
	return []byte{0, id, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 1, 'a', 0, 0, 1, 0, 1}
}

func answerTo(q []byte) []byte {
	b := append([]byte(nil), q...)
	b[2] |= 0x80
	return append(b, "the answer"...)
}

// host connects with a Server as the shim does, and returns the connection and what the guest said to the greeting.
func host(t *testing.T, at, greeting string) (net.Conn, string) {
	t.Helper()
	c, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patient))
	if _, err := io.WriteString(c, greeting); err != nil {
		t.Fatal(err)
	}
	said, err := line.Read(c, 512)
	if err != nil {
		t.Fatal(err)
	}
	return c, said
}

// serve runs a Server, and returns the address of the host's port and that of the guest's processes.
func serve(t *testing.T, admit func() error) (port, at string) {
	t.Helper()
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at = free.LocalAddr().String()
	_ = free.Close()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := newAt(netip.MustParseAddrPort(at), admit)
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Errorf("Serve() = %v", err)
		}
	})
	return l.Addr().String(), at
}

func yes() error { return nil }

// ask sends a question by UDP; the caller reads the answer.
func ask(t *testing.T, at string, q []byte) net.Conn {
	t.Helper()
	c, err := net.Dial("udp", at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(patient))
	if _, err := c.Write(q); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestQuestionsAreAnsweredByTheHost(t *testing.T) {
	port, at := serve(t, yes)
	c, said := host(t, port, "resolver 1\n")
	if said != "ok" {
		t.Fatalf("the guest says %q", said)
	}
	if _, said := host(t, port, "resolver 1\n"); !strings.Contains(said, "a host already") {
		t.Errorf("to a second host the guest says %q", said)
	}
	first, second := ask(t, at, query(1)), ask(t, at, query(2))
	var got []lookup.Message
	for range 2 {
		m, err := lookup.Read(c, lookup.MaxQuery)
		if err != nil || m.TCP {
			t.Fatalf("the host reads %+v, %v", m, err)
		}
		got = append(got, m)
	}
	for i := range got { // the later one first
		m := got[1-i]
		m.Body = answerTo(m.Body)
		if err := lookup.Write(c, m); err != nil {
			t.Fatal(err)
		}
	}
	buf := make([]byte, 512)
	for i, client := range []net.Conn{first, second} {
		if n, err := client.Read(buf); err != nil || string(buf[:n]) != string(answerTo(query(byte(i+1)))) {
			t.Errorf("client %d has %q, %v", i, buf[:n], err)
		}
	}

	tcp, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	_ = tcp.SetDeadline(time.Now().Add(patient))
	for id, answer := range map[byte]func([]byte) []byte{ // two questions of one connection
		3: answerTo,
		4: func([]byte) []byte { return nil },                // there is no answer
		5: func([]byte) []byte { return answerTo(query(9)) }, // to another question
	} {
		q := query(id)
		if _, err := tcp.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(q))), q...)); err != nil {
			t.Fatal(err)
		}
		m, err := lookup.Read(c, lookup.MaxQuery)
		if err != nil || !m.TCP || string(m.Body) != string(q) {
			t.Fatalf("the host reads %+v, %v", m, err)
		}
		m.Body = answer(q)
		if err := lookup.Write(c, m); err != nil {
			t.Fatal(err)
		}
		want := lookup.Failure(q)
		if id == 3 {
			want = answerTo(q)
		}
		if _, err := io.ReadFull(tcp, buf[:2+len(want)]); err != nil || string(buf[2:2+len(want)]) != string(want) {
			t.Errorf("question %d by TCP is answered with %x, %v", id, buf[2:2+len(want)], err)
		}
	}
}

// A process of the guest cannot make the agent keep more than it may, nor can a host that does not answer.
func TestQuestionsAreBounded(t *testing.T) {
	port, at := serve(t, yes)
	c, _ := host(t, port, "resolver 1\n")
	junk := ask(t, at, []byte("short"))
	for _, b := range [][]byte{make([]byte, lookup.MaxQuery+1), answerTo(query(1)), nil} {
		if _, err := junk.Write(b); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 3 * lookup.MaxFlying {
		ask(t, at, query(byte(i)))
	}
	read := 0
	for {
		_ = c.SetReadDeadline(time.Now().Add(300 * time.Millisecond))
		m, err := lookup.Read(c, lookup.MaxQuery)
		if err != nil {
			break
		}
		if !lookup.IsQuery(m.Body) {
			t.Errorf("the host reads %x", m.Body)
		}
		read++
	}
	if read != lookup.MaxFlying {
		t.Errorf("%d questions are in flight, want %d", read, lookup.MaxFlying)
	}
	long, err := net.Dial("tcp", at)
	if err != nil {
		t.Fatal(err)
	}
	defer long.Close()
	_ = long.SetDeadline(time.Now().Add(patient))
	if _, err := long.Write([]byte{0xff, 0xff, 1, 2, 3}); err != nil {
		t.Fatal(err)
	}
	if _, err := long.Read(make([]byte, 1)); !errors.Is(err, io.EOF) && err == nil {
		t.Errorf("a question of 64 KiB: %v", err)
	}
}

// Without the host's connection nobody listens, and the next connection finds the address free.
func TestTheAddressIsTheConnections(t *testing.T) {
	port, at := serve(t, yes)
	for range 3 {
		if c, err := net.Dial("tcp", at); err == nil {
			_ = c.Close()
			t.Fatal("somebody listens without a host")
		}
		c, said := host(t, port, "resolver 1\n")
		for deadline := time.Now().Add(patient); strings.Contains(said, "a host already"); { // the last one is on its way out
			if time.Now().After(deadline) {
				t.Fatal("the guest keeps a host that has gone")
			}
			c, said = host(t, port, "resolver 1\n")
		}
		if said != "ok" {
			t.Fatalf("the guest says %q", said)
		}
		busy, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.Write([]byte{0, 0, 7, 0, 0}); err != nil { // no frame
			t.Fatal(err)
		}
		_ = c.SetReadDeadline(time.Now().Add(patient))
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("the guest keeps the connection of a host that breaks the rules")
		}
		_ = busy.SetReadDeadline(time.Now().Add(patient))
		if _, err := busy.Read(make([]byte, 1)); err == nil {
			t.Error("a client outlives the host's connection")
		}
		_ = busy.Close()
		for deadline := time.Now().Add(patient); ; { // the guest closes before it lets go
			if c, err := net.Dial("tcp", at); err != nil {
				break
			} else if _ = c.Close(); time.Now().After(deadline) {
				t.Fatal("the guest listens on")
			}
		}
	}
}

func TestTheGateDecides(t *testing.T) {
	port, at := serve(t, func() error { return errors.New("the policy says no") })
	if _, said := host(t, port, "resolver 1\n"); said != "the policy says no" {
		t.Errorf("the guest says %q", said)
	}
	if _, said := host(t, port, "stream 1\n"); !strings.Contains(said, "unknown word") {
		t.Errorf("the guest says %q", said)
	}
	if c, err := net.Dial("tcp", at); err == nil {
		_ = c.Close()
		t.Error("somebody listens")
	}
}
