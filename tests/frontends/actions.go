// Copyright The coco Authors.
// SPDX-License-Identifier: Apache-2.0

package frontends

import "slices"

// Actions is the list, in the order of the page.
func Actions() []Action {
	return slices.Concat(running(), streams(), files(), volumes(), limits(), rights(), sharing(), networks(), life(),
		looking(), composed(), pods(), ctr())
}

// running has the actions that start a container, and look at its process.
func running() []Action {
	return []Action{
		{Name: "`run`: output and exit status", Script: `once $I sh -c 'echo out; echo err >&2; exit 7' 2>/dev/null`},
		{Name: "`run`: errors", Script: `once $I sh -c 'echo out; echo err >&2' 2>&1 >/dev/null`},
		{Name: "a command that is not there", Script: `once $I no-such-command`},
		{Name: "a path that is not there", Script: `once $I /no/such/command`},
		{Name: "a directory as command", Script: `once $I /etc`},
		{Name: "a file that is no program", Script: `once $I /etc/passwd`},
		{Name: "`-e`, `--env-file`", Script: `printf 'B=2\nC=x y\n' >$D/env; once -e A=1 --env-file $D/env $I sh -c 'echo $A $B "$C"'`},
		{Name: "`-w`", Script: `once -w /var/new $I pwd`},
		{Name: "`-u UID:GID`", Script: `once -u 65534:7 $I id`},
		{Name: "`-u NAME`", Script: `once -u nobody $I id`},
		{Name: "`--group-add`", Script: `once --group-add 7 --group-add 8 $I id -G`},
		{Name: "`--entrypoint`", Script: `once --entrypoint /bin/echo $I a b`},
		{Name: "`-h`", Script: `once -h box $I sh -c 'hostname; cat /etc/hostname'`},
		{Name: "`--domainname`", Only: Docker, Script: `once --domainname example.org $I cat /proc/sys/kernel/domainname`},
		{Name: "`--read-only`", Script: `once --read-only $I sh -c 'touch /x || echo no'`},
		{Name: "`--tmpfs`", Script: `once --tmpfs /t:size=1m,mode=1777 $I sh -c 'stat -c %a /t; df -k /t | tail -1 | tr -s " " | cut -d" " -f2'`},
		{Name: "`--mount type=tmpfs`", Script: `once --mount type=tmpfs,dst=/t,tmpfs-size=1m $I sh -c 'grep -c " /t tmpfs" /proc/mounts'`},
		{Name: "`--shm-size`", Script: `once --shm-size 3m $I sh -c 'df -k /dev/shm | tail -1 | tr -s " " | cut -d" " -f2'`},
		{Name: "`--cidfile`", Script: `once --cidfile $D/cid $I true; wc -c <$D/cid`},
		{Name: "`--label`, `inspect`", Script: `e create $R --name one --label k=v $I true >/dev/null; e inspect -f '{{.Config.Labels.k}}' one`},
		{Name: "`--rm` leaves nothing", Script: `once $I true; e ps -aq | wc -l`},
		{Name: "`--umask`", Only: Podman, Script: `once --umask 0077 $I sh -c umask`, Differ: &Difference{
			Outcome: Refused, Words: "umask",
			What:   "the agent's protocol, which is Kata's, carries no umask, and 0022 is what processes have there",
			WayOut: "`sh -c 'umask 0077; exec …'`",
		}},
		{Name: "`--secret`", Only: Podman, Script: `echo word | e secret create word - >/dev/null; once --secret word $I cat /run/secrets/word; e secret rm word >/dev/null`},
		{Name: "`--preserve-fds`", Only: Podman, Script: `once --preserve-fds 1 $I sh -c 'cat <&3' 3</etc/hostname`, Differ: &Difference{
			Outcome: Refused, Words: "--preserve-fds",
			What:   "open files of the host do not reach a process in a VM",
			WayOut: "`-i`, or a bind mount of the file",
		}},
		{Name: "`--rootfs`", Only: Podman, Script: `c=$(e create $I); m=$(e mount $c); mkdir $D/r; cp -a $m/. $D/r; e umount $c >/dev/null; e run --rm $R $N --rootfs $D/r echo from-directory`},
		{Name: "`--stop-signal`", Script: `new one --stop-signal USR1 $I sh -c 'trap "exit 9" USR1; echo up; while :; do sleep 0.1; done'; wait_for sh -c "$E logs one | grep -q up"; e stop -t 60 one >/dev/null; e inspect -f '{{.State.ExitCode}}' one`},
	}
}

// streams are standard streams and terminals.
func streams() []Action {
	return []Action{
		{Name: "`run -i`: 1.6 MB in", Script: `yes 0123456789abcde | head -c 1600000 | once -i $I md5sum`},
		{Name: "`run`: 8 MB out", Script: `once $I sh -c 'yes 0123456789abcde | head -c 8000000' | md5sum`},
		{Name: "`run -t`", Script: `once -t $I sh -c 'tty; exit 5'`},
		{Name: "`run -it` at a terminal", Script: `script -qec "stty cols 77 rows 33; $E run --rm $R $N -it $I sh -c 'stty size; exit 3'" /dev/null >$D/o </dev/null; c=$?; tr -d '^@' <$D/o; exit $c`},
		{Name: "`exec`", Script: `new one $I sleep 1000; e exec one sh -c 'echo in; exit 9'`},
		{Name: "`exec -i`", Script: `new one $I sleep 1000; yes abc | head -c 1000000 | e exec -i one md5sum`},
		{Name: "`exec -t`", Script: `new one $I sleep 1000; e exec -t one sh -c 'tty; exit 4'`},
		{Name: "`exec -d`", Script: `new one $I sleep 1000; e exec -d one touch /x >/dev/null; wait_for e exec one test -e /x && echo there`},
		{Name: "`exec -w -e -u`", Script: `new one $I sleep 1000; e exec -w /tmp -e A=b -u 65534 one sh -c 'pwd; echo $A; id -u'`},
		{Name: "`exec` of a command that is not there", Script: `new one $I sleep 1000; e exec one no-such-command >/dev/null`},
		{Name: "`exec --privileged`", Script: `new one $I sleep 1000; e exec --privileged one sh -c 'grep -c ^CapEff /proc/self/status; mount -t tmpfs x /mnt && echo mounted'`},
		{Name: "`logs`, `logs --tail`", Script: `new one $I sh -c 'echo 1; echo 2; echo 3'; e wait one; e logs one; e logs --tail 1 one`},
		{Name: "`logs -f`", Script: `new one $I sh -c 'for i in 1 2 3; do echo $i; sleep 0.3; done'; e logs -f one`},
		{Name: "`attach`", Script: `new one $I sh -c 'sleep 4; echo late; exit 6'; e attach one`},
		{Name: "`start -a`", Script: `e create $R $N --name one $I sh -c 'echo begun; exit 4' >/dev/null; e start -a one`},
		{Name: "`--log-driver none`", Script: `new one --log-driver none $I echo hidden; e wait one; e logs one 2>/dev/null`},
		{Name: "`--log-driver local`", Only: Docker, Script: `new one --log-driver local --log-opt max-size=1m $I echo shown; e wait one; e logs one`},
	}
}

// files are those of a container's own file system.
func files() []Action {
	const fill = `sh -c 'echo kept >/kept; mkdir /dir; echo x >/dir/x; rm -r /home; trap "exit 0" TERM; touch /ready; while :; do sleep 0.1; done'; wait_for e exec one test -e /ready; `
	stale := &Difference{
		On: Podman, Outcome: Differs,
		What: "Podman does not go through the directories that the shim watches; it shows the files as they were at the " +
			"start, or at the last pause",
		WayOut: "`pause` before; or `exec CONTAINER tar c PATH`",
	}
	return []Action{
		{Name: "`cp` out of a stopped container", Script: `new one $I ` + fill + `e stop one >/dev/null; e cp one:/kept - | tar xO`},
		{Name: "`cp` out of a paused container", Script: `new one $I ` + fill + `e pause one >/dev/null; e cp one:/kept - | tar xO`},
		{Name: "`cp` out of a running container", Script: `new one $I ` + fill + `e cp one:/kept - | tar xO`, Differ: stale},
		{Name: "`cp` into a created container", Script: `echo brought >$D/f; e create $R $N --name one $I cat /f >/dev/null; e cp $D/f one:/f; e start -a one`},
		{Name: "`cp` into a stopped container", Script: `echo brought >$D/f; new one $I sh -c 'cat /f || echo none'; e wait one; e cp $D/f one:/f; e start -a one`},
		{Name: "`cp` into a running container", Script: `echo brought >$D/f; new one $I sleep 1000; e cp $D/f one:/f; e exec one cat /f`, Differ: &Difference{
			On: Podman, Outcome: Differs,
			What: "the file is in Podman's directory of the host, and in the container from its next start on; Podman does " +
				"not go through the directories that the shim watches",
			WayOut: "`exec -i CONTAINER tar x`",
		}},
		{Name: "`diff` of a stopped container", Script: `new one $I ` + fill + `e stop one >/dev/null; e diff one | sort`},
		{Name: "`diff` of a running container", Script: `new one $I ` + fill + `e diff one | sort`, Differ: stale},
		{Name: "`export` of a stopped container", Script: `new one $I ` + fill + `e stop one >/dev/null; e export one | tar xO kept dir/x`},
		{Name: "`export` of a running container", Script: `new one $I ` + fill + `e export one | tar xO kept dir/x`, Differ: stale},
		{Name: "`commit` of a running container", Script: `new one $I ` + fill + `e commit one front >/dev/null 2>&1; once front cat /kept /dir/x; e rm -f one >/dev/null; e rmi front >/dev/null`},
		{Name: "files after `stop` and `start`", Script: `new one $I sh -c 'echo line >>/f; cat /f'; e wait one; e start -a one`},
		{Name: "files after `restart`", Script: `new one $I sh -c 'echo line >>/f; wc -l </f; trap "exit 0" TERM; while :; do sleep 0.1; done'; wait_for sh -c "$E logs one | grep -q 1"; e restart one >/dev/null; wait_for sh -c "$E logs one | grep -q 2"; e logs one`},
		{Name: "files after `kill` and `start`", Script: `new one $I sh -c 'echo line >>/f; cat /f; sleep 1000'; wait_for sh -c "$E logs one | grep -q line"; e kill one >/dev/null; e wait one; e start one >/dev/null; wait_for e exec one true; e exec one cat /f`},
	}
}

// volumes are volumes and bind mounts.
func volumes() []Action {
	return []Action{
		{Name: "`-v NAME:/d`: data for the next container", Script: `once -v vol:/d $I sh -c 'echo kept >/d/f; chown 7:8 /d/f'; once -v vol:/d $I sh -c 'cat /d/f; stat -c %u:%g /d/f'`},
		{Name: "`-v NAME:/d`: filled from the image", Script: `once -v vol:/etc $I ls /etc/passwd`},
		{Name: "`-v /d`: an anonymous volume", Script: `new one -v /d $I sh -c 'echo line >>/d/f; cat /d/f'; e wait one; e start -a one`},
		{Name: "`--mount type=volume`", Script: `once --mount type=volume,src=vol,dst=/d $I sh -c 'echo kept >/d/f'; once --mount type=volume,src=vol,dst=/d,ro $I sh -c 'cat /d/f; touch /d/x || echo no'`},
		{Name: "`--volumes-from`", Script: `new one -v /d $I sh -c 'echo kept >/d/f; sleep 1000'; wait_for e exec one test -s /d/f; once --volumes-from one $I cat /d/f`},
		{Name: "`cp` out of a volume of a running container", Script: `new one -v vol:/d $I sh -c 'echo kept >/d/f; sleep 1000'; wait_for e exec one test -s /d/f; e cp one:/d/f - | tar xO`, Only: Docker},
		{Name: "`cp` out of a volume of a running container, with Podman", Only: Podman, Script: `new one -v vol:/d $I sh -c 'echo kept >/d/f; sleep 1000'; wait_for e exec one test -s /d/f; e cp one:/d/f $D/f && cat $D/f`, Differ: &Difference{
			Outcome: Refused, Words: "could not be found",
			What: "Podman enters the mount namespace of the container's pid, which is the stand-in's; it has the files of the " +
				"container and not its volumes",
			WayOut: "the volume's directory (`podman volume inspect`); or `exec CONTAINER cat FILE`",
		}},
		{Name: "`-v DIR:/d`: the host has what it writes", Script: `once -v $D:/d $I sh -c 'echo seen >/d/f'; cat $D/f`},
		{Name: "`-v DIR:/d`: it has what the host writes later", Script: `new one -v $D:/d $I sleep 1000; e exec one ls /d; echo late >$D/late; wait_for e exec one test -s /d/late; e exec one cat /d/late`},
		{Name: "`-v DIR:/d:ro`", Script: `echo in >$D/f; once -v $D:/d:ro $I sh -c 'cat /d/f; touch /d/x || echo no'`},
		{Name: "`-v FILE:/f`", Script: `echo in >$D/f; once -v $D/f:/f $I sh -c 'cat /f; echo more >>/f'; cat $D/f`},
		{Name: "`--mount type=bind`", Script: `echo in >$D/f; once --mount type=bind,src=$D,dst=/d $I sh -c 'cat /d/f; echo out >/d/g'; cat $D/g`},
		{Name: "`--mount type=bind` of what is not there", Script: `once --mount type=bind,src=$D/none,dst=/d $I true`},
		{Name: "`-v SOCKET:/s`: the engine's own", Only: Docker, Script: `once -v $D/../d.sock:/s $I test -S /s`, Differ: &Difference{
			Outcome: Refused, Words: "socket", What: "a socket ends in the host's kernel",
			WayOut: "a published port; a network that both are in",
		}},
		{Name: "`-v DIR:/d:O`: an overlay", Only: Podman, Script: `echo in >$D/f; once -v $D:/d:O $I sh -c 'cat /d/f; echo no >/d/f' && cat $D/f`, Differ: &Difference{
			Outcome: Refused, Words: "a file system of type \"overlay\"",
			What:   "the overlay of a directory is a file system of the host, which the guest's kernel cannot mount",
			WayOut: "`-v DIR:/d:ro`; or a copy of the directory as a volume",
		}},
		{Name: "`-v DIR:/d:U`: chowned", Only: Podman, Script: `echo in >$D/f; once -u 7:8 -v $D:/d:U $I stat -c %u:%g /d/f`},
		{Name: "`-v DIR:/d:rshared`", Script: `mkdir $D/m; new one -v $D/m:/d:rshared $I sleep 1000; e exec one test -d /d`},
	}
}
