// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package qmp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/coco-shim/coco/internal/fdpass"
	"github.com/coco-shim/coco/internal/worktest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const greeting = `{"QMP": {"version": {"qemu": {"micro": 2, "minor": 0, "major": 10}, "package": ""}, "capabilities": ["oob"]}}` + "\n"

// vmm is the other end: it answers commands the way serve says.
type vmm struct {
	conn  net.Conn
	lines *bufio.Scanner
}

type request struct {
	Execute   string
	Arguments json.RawMessage
	ID        uint64
}

func sockets(t *testing.T) (*net.UnixConn, *vmm) {
	t.Helper()
	ours, f, err := fdpass.Pair("qmp", unix.SOCK_STREAM)
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return ours, &vmm{conn, bufio.NewScanner(conn)}
}

func (v *vmm) send(t *testing.T, s string) {
	t.Helper()
	if _, err := io.WriteString(v.conn, s); err != nil {
		t.Errorf("fake VMM: %v", err)
	}
}

func (v *vmm) next(t *testing.T) (r request) {
	t.Helper()
	if !v.lines.Scan() {
		t.Error("fake VMM: no command came")
		return r
	}
	if err := json.Unmarshal(v.lines.Bytes(), &r); err != nil {
		t.Errorf("fake VMM: %v in %s", err, v.lines.Bytes())
	}
	return r
}

func connect(t *testing.T, onEvent func(Event)) (*Client, *vmm) {
	t.Helper()
	conn, v := sockets(t)
	go func() {
		v.send(t, greeting)
		r := v.next(t)
		v.send(t, fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", r.ID))
	}()
	c, err := Connect(t.Context(), conn, onEvent)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c, v
}

func TestCommandsAnswersAndEvents(t *testing.T) {
	var events []Event
	c, v := connect(t, func(e Event) { events = append(events, e) })
	if got := c.Version(); got.String() != "10.0.2" || !got.AtLeast(7, 2) || got.AtLeast(10, 1) {
		t.Errorf("Version() = %v", got)
	}
	go func() {
		r := v.next(t)
		v.send(t, `{"event": "STOP", "timestamp": {"seconds": 1, "microseconds": 2}}`+"\n")
		v.send(t, `{"event": "SHUTDOWN", "data": {"guest": true}}`+"\n")
		v.send(t, fmt.Sprintf(`{"return": {"echo": %s}, "id": %d}`+"\n", r.Arguments, r.ID))
		r = v.next(t)
		v.send(t, fmt.Sprintf(`{"error": {"class": "GenericError", "desc": "Device 'x' not found"}, "id": %d}`+"\n", r.ID))
	}()
	var got struct{ Echo map[string]bool }
	if err := c.Call(t.Context(), "say", map[string]any{"a": true}, &got); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(map[string]bool{"a": true}, got.Echo); diff != "" {
		t.Errorf("answer (-want +got):\n%s", diff)
	}
	want := []Event{{Name: "STOP"}, {Name: "SHUTDOWN", Data: json.RawMessage(`{"guest": true}`)}}
	if diff := cmp.Diff(want, events); diff != "" {
		t.Errorf("events (-want +got):\n%s", diff)
	}
	err := c.Call(t.Context(), "device_del", nil, nil)
	var qerr *Error
	if !errors.As(err, &qerr) || err.Error() != "VMM command device_del: Device 'x' not found" {
		t.Errorf("Call() = %v, want the VMM's error", err)
	}
}

func TestFilesTravelWithTheirCommand(t *testing.T) {
	c, v := connect(t, func(Event) {})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, files, err := fdpass.Recv(v.conn.(*net.UnixConn), make([]byte, 4096), 4)
		if err != nil || len(files) != 1 {
			t.Errorf("Recv() = %d files, %v, want 1", len(files), err)
			return
		}
		_, _ = files[0].WriteString("got it")
		_ = files[0].Close()
		v.send(t, `{"return": {}, "id": 2}`+"\n")
	}()
	if err := c.Call(t.Context(), "add-fd", nil, nil, w); err != nil {
		t.Error(err)
	}
	<-done
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "got it" {
		t.Errorf("file = %q, %v", got, err)
	}
}

func TestACommandGivenUpKeepsOthersWaitingUntilItsAnswer(t *testing.T) {
	c, v := connect(t, func(Event) {})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	if err := c.Call(ctx, "slow", nil, nil); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("Call() = %v, want the deadline", err)
	}
	if err := c.Call(ctx, "second", nil, nil); err == nil ||
		!strings.Contains(err.Error(), "earlier command still under way") {
		t.Errorf("Call() = %v, want that an earlier command is under way", err)
	}
	go func() {
		v.send(t, fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", v.next(t).ID))
		v.send(t, fmt.Sprintf(`{"return": {}, "id": %d}`+"\n", v.next(t).ID))
	}()
	if err := c.Call(t.Context(), "third", nil, nil); err != nil {
		t.Errorf("Call() = %v, want nil once the slow answer came", err)
	}
}

func TestTheEndOfTheVMMEndsCallsAtOnce(t *testing.T) {
	c, v := connect(t, func(Event) {})
	go func() {
		v.next(t)
		_ = v.conn.Close()
	}()
	if err := c.Call(t.Context(), "quit", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Call() = %v, want ErrClosed", err)
	}
	<-c.Done()
	if err := c.Call(t.Context(), "more", nil, nil); !errors.Is(err, ErrClosed) {
		t.Errorf("Call() = %v, want ErrClosed", err)
	}
}

func TestConnectRefusesWhatIsNoVMM(t *testing.T) {
	tests := []struct{ name, say, want string }{
		{"nothing", "", "wait for the VMM's greeting: control connection to the VMM has ended (EOF)"},
		{"not JSON", "hello\n", "decode message"},
		{"an answer first", `{"return": {}, "id": 1}` + "\n", "not sent"},
		{"two kinds at once", `{"return": {}, "event": "STOP"}` + "\n", "neither"},
		{"an endless line", strings.Repeat("a", MaxMessage+1), "longer than"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			conn, v := sockets(t)
			go func() {
				_, _ = io.WriteString(v.conn, tt.say)
				_ = v.conn.Close()
			}()
			_, err := Connect(t.Context(), conn, func(Event) {})
			if err == nil || !strings.Contains(err.Error(), tt.want) && !strings.Contains(err.Error(), "ended") {
				t.Errorf("Connect() = %v, want %q", err, tt.want)
			}
		})
	}
}

func TestHostileAnswersTakeLittle(t *testing.T) {
	for name, line := range map[string]string{
		"a list of nothing": `{"return": [` + strings.Repeat("{},", MaxMessage/3-20) + `{}]}`,
		"deep lists":        `{"return": ` + strings.Repeat("[", 9000) + strings.Repeat("]", 9000) + `}`,
		"many keys":         `{"return": {}` + strings.Repeat(`,"a":1`, MaxMessage/6-20) + `}`,
	} {
		t.Run(name, func(t *testing.T) {
			if len(line) > MaxMessage {
				t.Fatalf("%d bytes are refused before", len(line))
			}
			defer worktest.Bound(t, 0)() // whatever the length
			m, err := decode([]byte(line))
			if err != nil {
				t.Fatal(err)
			}
			var list []struct {
				Name string `json:"name"`
			}
			_ = json.Unmarshal(m.Return, &list) // of whichever shape
		})
	}
}

func TestWordsOfTheVMMAreBounded(t *testing.T) {
	m, err := decode([]byte(`{"error": {"class": "x", "desc": "a\u001b[2J\nb` + strings.Repeat("y", 5000) +
		`"}, "id": 1}`))
	if err != nil || len(m.Error.Error()) > 1100 || !strings.HasPrefix(m.Error.Error(), "a.[2J.by") {
		t.Errorf("error of %d bytes: %.40q, %v", len(m.Error.Error()), m.Error.Error(), err)
	}
}

func FuzzDecode(f *testing.F) {
	for _, s := range []string{
		greeting, `{"return":{},"id":1}`, `{"event":"SHUTDOWN","data":{"guest":true}}`,
		`{"error":{"class":"a","desc":"b"},"id":null}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		defer worktest.Bound(t, len(b))()
		line, err := readLine(bufio.NewReader(bytes.NewReader(b)))
		if len(line) > MaxMessage {
			t.Fatalf("line of %d bytes", len(line))
		}
		if err != nil {
			return
		}
		if m, err := decode(line); err == nil && m.QMP == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Fatalf("decode(%q) = an empty message", line)
		}
	})
}
