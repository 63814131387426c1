// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

// CtrWords are the words of scripts for ctr, which wants the container's name behind the image.
const CtrWords = `once() { o=; while [ "$1" != "$I" ]; do o="$o $1"; shift; done; shift; e run --rm $R $o $I once "$@"; }
new() { n=$1; shift; o=; while [ "$1" != "$I" ]; do o="$o $1"; shift; done; shift; e run -d $R $o $I $n "$@"; }
in_it() { n=$1; shift; e task exec --exec-id in $n "$@"; }
wait_for() { i=0; until "$@" >/dev/null 2>&1; do i=$((i+1)); [ $i -lt 300 ] || return 1; sleep 0.1; done; }
tidy() {
  for c in $(e task ls -q); do e task rm -f $c; done
  for c in $(e c ls -q); do e c rm $c; done
  rm -rf "$D"; mkdir "$D"
}
`

// ctr has what people do with ctr. Parity tests of tests/integration run more of it.
func ctr() []Action {
	list := []Action{
		{Name: "ctr: `run`: output and exit status", Script: `once $I sh -c 'echo out; echo err >&2; exit 7' 2>/dev/null`},
		{Name: "ctr: `run -d`, `task ls`, `task kill`", Script: `new one $I sleep 1000; e task ls | grep -c RUNNING; e task kill -s 9 one; wait_for sh -c "$E task ls | grep -q STOPPED"; e task ls | grep -c STOPPED; e task rm one; echo $?`},
		{Name: "ctr: a command that is not there", Script: `once $I no-such-command 2>/dev/null`},
		{Name: "ctr: `--env`, `--env-file`", Script: `printf 'B=2\n' >$D/env; once --env A=1 --env-file $D/env $I sh -c 'echo $A $B'`},
		{Name: "ctr: `--cwd`", Script: `once --cwd /usr/bin $I pwd`},
		{Name: "ctr: `--user`", Script: `once --user 65534:7 $I id`},
		{Name: "ctr: `--read-only`", Script: `once --read-only $I sh -c 'touch /x || echo no' 2>/dev/null`},
		{Name: "ctr: `--hostname`", Script: `once --hostname box $I hostname`},
		{Name: "ctr: `--tty`", Script: `script -qec "$E run --rm $R --tty $I once sh -c 'tty; exit 5'" /dev/null </dev/null >$D/o; c=$?; tr -d '^@' <$D/o; exit $c`},
		{Name: "ctr: `--cap-add`, `--cap-drop`", Script: `once --cap-add CAP_NET_ADMIN --cap-drop CAP_CHOWN $I grep CapEff /proc/self/status`},
		{Name: "ctr: `--privileged`", Script: `once --privileged $I sh -c 'mount -t tmpfs x /mnt && echo mounted'`},
		{Name: "ctr: `--seccomp`", Script: `once --seccomp $I grep Seccomp: /proc/self/status`},
		{Name: "ctr: `--memory-limit`", Script: `once --memory-limit 67108864 $I sh -c 'head -c 300m /dev/zero | tail >/dev/null; exit $?'`},
		{Name: "ctr: `--cpuset-cpus`", Script: `once --cpuset-cpus 0 $I grep Cpus_allowed_list /proc/self/status`},
		{Name: "ctr: `--rlimit-nofile`", Script: `once --rlimit-nofile 100:200 $I sh -c 'ulimit -n; ulimit -Hn'`},
		{Name: "ctr: `--mount type=bind`: the host has what it writes", Script: `once --mount type=bind,src=$D,dst=/d,options=rbind:rw $I sh -c 'echo seen >/d/f'; cat $D/f`},
		{Name: "ctr: `--mount type=bind`, read-only", Script: `echo in >$D/f; once --mount type=bind,src=$D,dst=/d,options=rbind:ro $I sh -c 'cat /d/f; touch /d/x || echo no' 2>/dev/null`},
		{Name: "ctr: `--mount type=tmpfs`", Script: `once --mount type=tmpfs,src=tmpfs,dst=/t,options=size=1m:mode=700 $I stat -c %a /t`},
		{Name: "ctr: `task exec`", Script: `new one $I sleep 1000; in_it one sh -c 'echo in; exit 9'`},
		{Name: "ctr: `task exec --cwd --user`", Script: `new one $I sleep 1000; e task exec --exec-id y --cwd /tmp --user 65534 one sh -c 'pwd; id -u'`},
		{Name: "ctr: `task pause`, `task resume`", Script: `new one $I sleep 1000; e task pause one; e task ls | grep -c PAUSED; e task resume one; in_it one echo again`},
		{Name: "ctr: `task attach`", Script: `new one $I sh -c 'sleep 4; exit 6'; e task attach one`},
		{Name: "ctr: `task metrics`", Script: `new one $I sleep 1000; e task metrics one | grep -c '^memory'`, Differ: &Difference{
			Outcome: Differs,
			What:    "the figures are those of control groups of version 2, which the guest has; this host has version 1",
			WayOut:  "the names of version 2",
		}},
		{Name: "ctr: files after a task and a new one", Script: `e c create $R $I one sh -c 'echo line >>/f; cat /f'; e task start one; e task rm one; e task start one`},
		{Name: "ctr: `--net-host`", Script: `once --net-host $I true`, Differ: &Difference{
			Outcome: Refused, Words: "--net host", What: "the guest has no namespaces of the host", WayOut: "`--cni`",
		}},
		{Name: "ctr: `--device` of the host", Script: `once --device /dev/loop-control $I test -c /dev/loop-control`, Differ: &Difference{
			Outcome: Refused, Words: "/dev/loop-control",
			What:   "a device node of the host means nothing to the guest's kernel",
			WayOut: "`--privileged` gives the guest's own devices",
		}},
		{Name: "ctr: `task checkpoint`", Script: `new one $I sleep 1000; e task checkpoint one 2>/dev/null; test $? != 0 && echo refused`},
	}
	for i := range list {
		list[i].Only = Ctr
	}
	return list
}
