# A root of its own, read-only, out of what is named; in it a command, as another user and without any right beyond its
# own. Called in namespaces of user and mounts, where it may do so: see contained.py. It becomes the command: signals
# reach that.
#   contained.sh ROOT UID GID [ro:PATH | rw:FROM:PATH | shm:BYTES]... -- COMMAND...
set -eu
root=$1 uid=$2 gid=$3
shift 3
mount -t tmpfs tmpfs "$root"
while [ "$1" != -- ]; do
  case $1 in
    shm:*) mount -t tmpfs -o "size=${1#shm:},mode=1777" shm "$root/dev/shm"; shift; continue ;;
    ro:*) from=${1#ro:} to=${1#ro:} ;;
    rw:*) rest=${1#rw:} from=${rest%%:*} to=${rest#*:} ;;
  esac
  if [ -L "$from" ]; then
    cp -P "$from" "$root$to"
  else
    mkdir -p "$root$to"
    mount --rbind "$from" "$root$to"
    case $1 in ro:*) mount -o remount,bind,ro "$root$to" ;; esac
  fi
  shift
done
shift
mount -o remount,ro "$root"
exec unshare --user --map-user="$uid" --map-group="$gid" --root="$root" --wd=/ -- "$@"
