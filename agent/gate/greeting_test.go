// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"errors"
	"io"
	"net"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/coco-shim/coco/api/contract"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// greet sends a line and returns the number that was admitted, 0 if none, and the answer.
func greet(t *testing.T, g Greeting, line string, verdict error) (uint32, string) {
	t.Helper()
	host, guest := net.Pipe()
	got := make(chan uint32, 1)
	go func() {
		var n uint32
		err := g.Admit(guest, func(number uint32) error { n = number; return verdict })
		if err == nil && verdict != nil {
			t.Errorf("%q: Admit = nil, want %v", line, verdict)
		}
		_ = guest.Close()
		got <- n
	}()
	wrote := make(chan struct{})
	go func() {
		defer close(wrote)
		_, _ = io.WriteString(host, line) // ends with the pipe, if the greeting is longer than what is read
	}()
	answer, err := io.ReadAll(host)
	if err != nil {
		t.Errorf("%q: read the answer: %v", line, err)
	}
	_ = host.Close()
	<-wrote
	return <-got, string(answer)
}

func TestGreetings(t *testing.T) {
	stream, port := Greeting{Word: contract.StreamWord, Max: 1<<32 - 1}, Greeting{Max: 1<<16 - 1}
	for _, tc := range []struct {
		g    Greeting
		line string
		n    uint32 // 0: refused
		want string // of the answer
	}{
		{stream, "stream 7\n", 7, "ok\n"},
		{stream, "stream 4294967295\n", 1<<32 - 1, "ok\n"},
		{port, "8080\n", 8080, "ok\n"},
		{stream, "hello\n", 0, `unknown word "hello"`},
		{stream, "7\n", 0, `unknown word "7"`},
		{stream, "stream 7 tty\n", 0, `unknown field "tty"`},
		{stream, "stream 7 \n", 0, `unknown field ""`},
		{stream, "stream\n", 0, `"" is not a number from 1 to 4294967295`},
		{stream, "stream 0\n", 0, `"0" is not a number`},
		{stream, "stream 07\n", 0, `"07" is not a number`},
		{stream, "stream +7\n", 0, `"+7" is not a number`},
		{stream, "stream 4294967296\n", 0, `"4294967296" is not a number`},
		{stream, "stream " + strings.Repeat("1", 64) + "\n", 0, "longer than 32 bytes"},
		{port, "tcp 80\n", 0, `"tcp" is not a number from 1 to 65535`},
		{port, "80 udp\n", 0, `unknown field "udp"`},
		{port, "65536\n", 0, `"65536" is not a number`},
		{port, "\n", 0, `"" is not a number`},
		{port, "80\x1b[2J\n", 0, `"80\x1b[2J" is not a number`},
	} {
		n, answer := greet(t, tc.g, tc.line, nil)
		if n != tc.n || !strings.Contains(answer, tc.want) || strings.Count(answer, "\n") != 1 ||
			!strings.HasSuffix(answer, "\n") {
			t.Errorf("%q: number %d, answer %q; want %d, %q", tc.line, n, answer, tc.n, tc.want)
		}
	}
}

// TestARefusalIsTheAnswer: the host also gets admit's error, in one line.
func TestARefusalIsTheAnswer(t *testing.T) {
	_, answer := greet(t, Greeting{Max: 9}, "9\n", errors.Join(errors.New("busy"), errors.New("tired")))
	if !strings.HasPrefix(answer, "busy") || strings.Count(answer, "\n") != 1 {
		t.Errorf("answer %q", answer)
	}
}
